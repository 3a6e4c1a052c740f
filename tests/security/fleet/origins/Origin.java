// Tomcat, with one connector for each way it may be set up. Prints `NAME: PORT` for each, then
// `ready`.

import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;

public class Origin {
    static final Logger ALL = Logger.getLogger("");

    static class Event extends HttpServlet {
        @Override
        protected void service(HttpServletRequest request, HttpServletResponse response)
                throws IOException {
            response.getWriter().print("the event handler was reached");
        }
    }

    public static void main(String[] arguments) throws Exception {
        ALL.setLevel(Level.OFF);
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(arguments[0]);
        Map<String, Connector> connectors = new LinkedHashMap<>();
        for (String slashes : new String[] {"reject", "decode", "passthrough"}) {
            Connector connector = new Connector();
            connector.setPort(0);
            connector.setProperty("address", "127.0.0.1");
            connector.setProperty("relaxedPathChars", "\\\"<>[]^`{|}");
            connector.setEncodedSolidusHandling(slashes);
            connector.setAllowBackslash(!slashes.equals("reject"));
            connectors.put("Tomcat, encoded slashes: " + slashes, connector);
            tomcat.getService().addConnector(connector);
        }
        var context = tomcat.addContext("", arguments[0]);
        Tomcat.addServlet(context, "event", new Event());
        context.addServletMappingDecoded("/v1/event/*", "event");
        tomcat.start();
        connectors.forEach((name, connector) ->
            System.out.println(name + ": " + connector.getLocalPort()));
        System.out.println("ready");
        Thread.currentThread().join();
    }
}
